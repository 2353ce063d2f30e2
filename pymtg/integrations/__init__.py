"""Data maps in other people's trainers.

``pymtg.integrations.lightning``, ``.huggingface`` and ``.torchmetrics``; each needs the package of its name and is
imported by its full name. Nothing else in pymtg imports them.
"""
