"""The commands behind :mod:`pymtg.cli`, one module each; what is slow to import is imported inside them."""
