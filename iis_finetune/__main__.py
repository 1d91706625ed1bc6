"""`python -m iis_finetune` is `iis-finetune`."""

from .cli import main

main()
