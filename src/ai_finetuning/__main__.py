"""`python -m ai_finetuning` is `aift`."""

from .apps.cli.main import main

main()
