"""The images API of OpenAI, for every model of the catalog."""
