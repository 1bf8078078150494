"""Fine-tuning: data sets in, signed and evaluated adapters out.

The control plane (light: no torch) imports, prepares, signs and verifies:

    dataset = datasets.import_dataset(home, registry, path, name, actor, progress)
    RunFolder(run_dir).create(Run(spec=…, base=Resolved(…), dataset=Resolved(…), threads=None))
    adapter = adapters.register(home, registry, run_dir, job_id)       # hashes and signs
    folder = adapters.verify(home, registry, name, base_digest)        # fails closed

The job (torch, Ray) computes, and never sees the signing key:

    python -m appliance.tuning.job RUN_DIR

``base_digest`` and ``dataset.digest`` are :func:`appliance.tuning.files.tree_digest` of the
folder's files: SHA-256 of the RFC 8785 JSON of path → ``sha256:<hex>``.

Pure: :mod:`rows`, :mod:`batches`, :mod:`schedule`, :mod:`encode`. On disk: :mod:`run`,
:mod:`checkpoints`, :mod:`datasets`, :mod:`adapters`, :mod:`files`. With a model: :mod:`model`,
:mod:`evaluate`, :mod:`loop`.
"""
