"""One module a group of commands; each parses, calls the client, prints."""
