"""The page in a real browser: its own package, so that the browser and its event loop end with these tests."""
