"""Bundles: made here, judged here, taken in here.

A builder goes

    store = Store(cache)                                     # digest, size = store.add(path)
    manifest = BundleManifest(schema_version=1, …)
    repository = Repository.open(keys_folder, passphrase_source())
    signatures = {model.name: model_signature.sign(
        {f.path: f.hex for f in model.files}, repository.model_key(), model.name)}   # every model
    others = {REVOCATIONS: repository.revocations()}
    members = signed_members(manifest, sbom, signatures, others)
    metadata = repository.sign(manifest.name, members, artefacts=manifest.artefacts)
    write(path, BundleContent(manifest, sbom, signatures, metadata, others), store.path, progress)

and an installer

    state = load_state(home.trust)                           # .pinned_to(Fingerprint.parse(text))
    loaded = load(path, Store(home.store), Verifier(state), progress)
    require_platform(loaded.manifest, Platform.of_this_machine())
    save_state(home.trust, loaded.verified.state)
    release = Releases(home).materialise(loaded.content, Store(home.store), progress)
    Releases(home).activate(release.id)

A plan that must not write uses ``judge(reader, verifier)``, which reads no blob.
"""
