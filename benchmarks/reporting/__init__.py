"""Results as Markdown, tables and pictures, and the comparison of two runs."""
