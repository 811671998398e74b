"""`python -m prefactor_trace` is the command line."""

from prefactor_trace.cli import main

if __name__ == "__main__":
    main()
