"""The node agent: the small program that runs training on a node and dies with its grant.

It is shipped as one archive (`archive.build_archive`) to machines where nothing of ours is installed, so this package
is standard library only, imports nothing else of ours, and uses relative imports alone: inside the archive it is
called ``mlinfra_agent``. The client side imports the same modules (`codecs`, `wire`, `secrets`, `submission`), so both
ends of the wire are the same code.
"""
