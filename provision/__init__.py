"""The host: everything that has to be on a machine before a model can be served.

The package reads facts about the host, prepares Python environments under the root and finds or
installs a Triton server. It knows nothing about models; :mod:`pipeline` builds on it.
"""
