"""The model: export, verify, deploy, serve and smoke-test a torchvision classifier on Triton.

Heavy libraries are imported where they are used: torch lives in the export environment alone, and
``python -m pipeline --help`` has to answer at once.
"""
