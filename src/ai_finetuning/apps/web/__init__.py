"""PEOPLE in a browser: `aift web`, a server on this PC that shows runs, starts them, and may end without them."""
