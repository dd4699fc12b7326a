"""The text of what is published with a model: a hub's model card in Markdown, Triton's config.pbtxt."""
