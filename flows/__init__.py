"""Ready-made flows with flat scalar parameters, so that they render as forms; shipped as ``mlinfra_prefect.flows``."""
