"""The prediction service: an exported model behind HTTP, without torch and without the data set."""
