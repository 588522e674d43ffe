"""The wheel of a client in small."""

from setuptools import setup

setup(name="tritonclient", version="0.0.0", packages=["tritonclient", "tritonclient.http"])
