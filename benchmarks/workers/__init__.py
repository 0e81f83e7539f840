"""One process per variant: each does one optimizer step whenever the driver asks for it."""
