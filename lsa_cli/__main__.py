"""`python -m lsa_cli`, and the `lsa` command."""

from lsa_cli.cli.main import app

__all__ = ["app"]

if __name__ == "__main__":
    app()
