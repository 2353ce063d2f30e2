"""Data maps in other people's programs.

``pymtg.integrations.lightning``, ``.huggingface``, ``.torchmetrics`` and ``.tensorboard``; each needs the package of
its name and is imported by its full name. The trainers' ``tensorboard=`` uses the last; nothing else in pymtg imports
them.
"""
