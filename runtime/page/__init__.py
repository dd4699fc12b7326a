"""The page in a browser that shows pictures and their answers: of a server, or of a model in the browser itself."""
