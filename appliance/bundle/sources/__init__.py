"""Where the parts of a bundle come from: one module a source, each ``make(source, desk, …)``.

A source returns :class:`~appliance.bundle.sources.desk.Made`: files with their digests, on disk.
Nothing here signs or writes a bundle; :mod:`appliance.bundle.build` does.
"""
