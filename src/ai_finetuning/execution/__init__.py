"""One run in this process: from a request to what stays of it."""
