"""Triton kernels of the fused cross-entropy and the data map; import torch and triton only.

``cross_entropy`` has the launchers, ``tiles`` cuts a layout into tiles; ``_loss``, ``_gradient``, ``_record`` and
``_faults`` run on the device.
"""
