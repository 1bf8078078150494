"""The tree against RFC 6962 as it is written, and against Certificate Transparency's vectors."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ledger.merkle import (
    CompactRange,
    consistency_holds,
    consistency_proof,
    inclusion_holds,
    inclusion_proof,
    leaf_hash,
    perfect_root,
)

# certificate-transparency-go, merkletree reference leaves and roots
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
INCLUSION = {
    (0, 1): "",
    (0, 8): "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    (5, 8): "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    (2, 3): "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
}
CONSISTENCY = {
    (1, 1): "",
    (1, 8): "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    (6, 8): "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    (2, 5): "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
}


def split(text: str) -> list[bytes]:
    return [bytes.fromhex(text[i : i + 64]) for i in range(0, len(text), 64)]


def k(n: int) -> int:
    power = 1
    while power * 2 < n:
        power *= 2
    return power


def mth(entries: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not entries:
        return sha256(b"").digest()
    if len(entries) == 1:
        return sha256(b"\0" + entries[0]).digest()
    middle = k(len(entries))
    return sha256(b"\1" + mth(entries[:middle]) + mth(entries[middle:])).digest()


def path(m: int, entries: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, word for word."""
    if len(entries) == 1:
        return []
    middle = k(len(entries))
    if m < middle:
        return [*path(m, entries[:middle]), mth(entries[middle:])]
    return [*path(m - middle, entries[middle:]), mth(entries[:middle])]


def subproof(m: int, entries: list[bytes], whole: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2, word for word."""
    if m == len(entries):
        return [] if whole else [mth(entries)]
    middle = k(len(entries))
    if m <= middle:
        return [*subproof(m, entries[:middle], whole), mth(entries[middle:])]
    return [*subproof(m - middle, entries[middle:], False), mth(entries[:middle])]


def reader(entries: list[bytes]):
    def node(height: int, index: int) -> bytes:
        return mth(entries[index << height : (index + 1) << height])

    return node


def test_roots_are_those_of_certificate_transparency():
    tree = CompactRange()
    assert tree.root() == ROOTS[0]
    for size, leaf in enumerate(LEAVES, start=1):
        tree.append(leaf_hash(leaf))
        assert tree.root() == ROOTS[size] == mth(LEAVES[:size])


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_vectors(index: int, size: int):
    proof = split(INCLUSION[index, size])
    assert inclusion_proof(index, size, reader(LEAVES)) == proof
    assert inclusion_holds(leaf_hash(LEAVES[index]), index, size, proof, ROOTS[size])


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_vectors(old: int, new: int):
    proof = split(CONSISTENCY[old, new])
    assert consistency_proof(old, new, reader(LEAVES)) == proof
    assert consistency_holds(old, ROOTS[old], new, ROOTS[new], proof)


trees = st.lists(st.binary(max_size=4), min_size=1, max_size=70)


@given(trees, st.data())
def test_inclusion_is_as_the_rfc_says_and_nothing_else_holds(entries: list[bytes], data):
    size, root = len(entries), mth(entries)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, reader(entries))
    assert proof == path(index, entries)
    leaf = leaf_hash(entries[index])
    assert inclusion_holds(leaf, index, size, proof, root)
    other = data.draw(st.integers(0, 200).filter(lambda n: n != index))
    assert not inclusion_holds(leaf_hash(b"another entry"), index, size, proof, root)
    assert not inclusion_holds(leaf, index, size, [*proof, root], root)
    if other >= size or entries[other] != entries[index]:
        assert not inclusion_holds(leaf, other, size, proof, root)
    if proof:
        assert not inclusion_holds(leaf, index, size, proof[:-1], root)


@given(trees, st.data())
def test_consistency_is_as_the_rfc_says_and_nothing_else_holds(entries: list[bytes], data):
    new, root = len(entries), mth(entries)
    old = data.draw(st.integers(1, new))
    before = mth(entries[:old])
    proof = consistency_proof(old, new, reader(entries))
    assert proof == subproof(old, entries, True)
    assert consistency_holds(old, before, new, root, proof)
    assert not consistency_holds(old, leaf_hash(b"another entry"), new, root, proof)
    assert not consistency_holds(old, before, new, leaf_hash(b"another entry"), proof)
    assert not consistency_holds(old, before, new, root, [*proof, root])
    if proof:
        assert not consistency_holds(old, before, new, root, proof[:-1])


@given(trees, st.integers(0, 3))
def test_whole_subtrees_append_as_their_leaves_would(entries: list[bytes], height: int):
    leaves = [leaf_hash(entry) for entry in entries]
    one_by_one, by_subtree = CompactRange(), CompactRange()
    for leaf in leaves:
        one_by_one.append(leaf)
    width = 1 << height
    whole = len(leaves) // width * width
    for start in range(0, whole, width):
        by_subtree.append(perfect_root(leaves[start : start + width]), height)
    for leaf in leaves[whole:]:
        by_subtree.append(leaf)
    assert by_subtree.root() == one_by_one.root() == mth(entries)


def test_a_tree_does_not_take_a_subtree_out_of_place():
    tree = CompactRange()
    tree.append(leaf_hash(b""))
    with pytest.raises(ValueError, match="cannot start at leaf 1"):
        tree.append(leaf_hash(b""), height=1)
