"""The tree of RFC 9162: known vectors, a recursive reading of the RFC, and an implementation of somebody else's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import sha256

import pymerkle
import pytest
from concilia_kit import merkle, signing
from concilia_kit.signing import Domain, Update
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

# The leaves of the test vectors of Certificate Transparency's reference implementation, and the roots over the first
# 1 to 8 of them (google/certificate-transparency, merkletree/merkle_tree_test.cc).
VECTOR = [bytes.fromhex(each) for each in ("", "00", "10", "2021", "3031", "40414243")]
VECTOR += [bytes.fromhex("5051525354555657"), bytes.fromhex("606162636465666768696a6b6c6d6e6f")]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
COUNTS = st.integers(1, 70)


def leaves_of(count: int, seed: int = 0) -> list[bytes]:
    return [merkle.leaf(f"{seed} {number}".encode()) for number in range(count)]


def recursive_root(leaves: Sequence[bytes]) -> bytes:
    """MTH(D_n) as RFC 9162, 2.1.1 defines it."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return merkle.node(recursive_root(leaves[:k]), recursive_root(leaves[k:]))


def recursive_proof(leaves: Sequence[bytes], m: int) -> list[bytes]:
    """PATH(m, D_n) as RFC 9162, 2.1.3.1 defines it."""
    if len(leaves) == 1:
        return []
    k = 1 << (len(leaves) - 1).bit_length() - 1
    if m < k:
        return [*recursive_proof(leaves[:k], m), recursive_root(leaves[k:])]
    return [*recursive_proof(leaves[k:], m - k), recursive_root(leaves[:k])]


def way(index: int, count: int) -> str:
    """Left and right turns from a leaf to the root, by the RFC's recursion."""
    if count == 1:
        return ""
    k = 1 << (count - 1).bit_length() - 1
    return way(index, k) + "l" if index < k else way(index - k, count - k) + "r"


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit).to_bytes(len(data), "big")


@pytest.mark.parametrize("count", range(1, 9))
def test_the_vectors_of_certificate_transparency(count: int) -> None:
    leaves = [merkle.leaf(data) for data in VECTOR[:count]]
    assert merkle.root(leaves).hex() == ROOTS[count - 1]
    assert merkle.Tree(leaves).root.hex() == ROOTS[count - 1]


def test_no_leaves() -> None:
    assert merkle.root([]) == merkle.Tree([]).root == sha256(b"").digest()
    assert not merkle.verify(sha256(b"").digest(), 0, 0, [], sha256(b"").digest())
    with pytest.raises(IndexError):
        merkle.Tree([]).proof(0)


@given(COUNTS, st.integers())
def test_the_recursion_of_the_rfc_agrees(count: int, seed: int) -> None:
    leaves = leaves_of(count, seed)
    tree = merkle.Tree(leaves)
    assert len(tree) == count
    assert merkle.root(iter(leaves)) == tree.root == recursive_root(leaves)
    for index, each in enumerate(leaves):
        proof = tree.proof(index)
        assert proof == recursive_proof(leaves, index)
        assert merkle.verify(each, index, count, proof, tree.root)


@pytest.mark.parametrize("index", [-1, 5])
def test_no_proof_of_a_leaf_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError):
        merkle.Tree(leaves_of(5)).proof(index)


def test_pymerkle_agrees_on_a_thousand_random_trees() -> None:
    """Roots, paths, and verdicts in both directions."""
    drawn = random.Random(9162)
    for _ in range(1_000):
        entries = [drawn.randbytes(drawn.randrange(120)) for _ in range(drawn.randint(1, 65))]
        theirs = pymerkle.InmemoryTree(algorithm="sha256")
        for entry in entries:
            theirs.append_entry(entry)
        ours = merkle.Tree([merkle.leaf(entry) for entry in entries])
        assert ours.root == theirs.get_root()

        index = drawn.randrange(len(entries))
        proof = theirs.prove_inclusion(index + 1, len(entries))
        assert proof.path[0] == merkle.leaf(entries[index])
        assert proof.path[1:] == ours.proof(index)
        pymerkle.verify_inclusion(merkle.leaf(entries[index]), ours.root, proof)
        assert merkle.verify(proof.path[0], index, len(entries), proof.path[1:], theirs.get_root())

        wrong = flipped(ours.root, drawn.randrange(256))
        with pytest.raises(pymerkle.InvalidProof):
            pymerkle.verify_inclusion(proof.path[0], wrong, proof)
        assert not merkle.verify(proof.path[0], index, len(entries), proof.path[1:], wrong)


@given(COUNTS, st.data())
def test_no_bit_of_leaf_proof_index_or_root_can_change(count: int, data: st.DataObject) -> None:
    tree = merkle.Tree(leaves := leaves_of(count))
    index = data.draw(st.integers(0, count - 1))
    proof = tree.proof(index)
    for bit in range(256):
        assert not merkle.verify(flipped(leaves[index], bit), index, count, proof, tree.root)
        assert not merkle.verify(leaves[index], index, count, proof, flipped(tree.root, bit))
        for at in range(len(proof)):
            changed = [*proof[:at], flipped(proof[at], bit), *proof[at + 1 :]]
            assert not merkle.verify(leaves[index], index, count, changed, tree.root)
    for bit in range(64):
        assert not merkle.verify(leaves[index], index ^ 1 << bit, count, proof, tree.root)


@given(COUNTS, st.integers(1, 200))
def test_another_count_is_refused_unless_the_way_is_the_same(count: int, other: int) -> None:
    """The RFC's root does not bind the count; where the way to the root differs in length or turns, it shows."""
    tree = merkle.Tree(leaves := leaves_of(count))
    for index, each in enumerate(leaves):
        same = index < other and way(index, other) == way(index, count)
        assert merkle.verify(each, index, other, tree.proof(index), tree.root) is same


@given(COUNTS, COUNTS)
def test_the_last_leaf_of_the_smaller_count_gives_a_wrong_count_away(count: int, other: int) -> None:
    tree = merkle.Tree(leaves := leaves_of(count))
    last = min(count, other) - 1
    assert merkle.verify(leaves[last], last, other, tree.proof(last), tree.root) is (count == other)


@given(COUNTS, st.data())
def test_a_proof_is_neither_longer_nor_shorter(count: int, data: st.DataObject) -> None:
    tree = merkle.Tree(leaves := leaves_of(count))
    index = data.draw(st.integers(0, count - 1))
    proof = tree.proof(index)
    assert not merkle.verify(leaves[index], index, count, [*proof, bytes(32)], tree.root)
    if proof:
        assert not merkle.verify(leaves[index], index, count, proof[:-1], tree.root)
        # The start of a way up is the way up in no tree of this count, whatever root is claimed.
        inner = merkle.node(*((proof[0], leaves[index]) if index & 1 else (leaves[index], proof[0])))
        assert not merkle.verify(inner, index >> 1, count, proof[1:], tree.root)


@given(
    st.binary(max_size=33),
    st.integers(-1, 2**33),
    st.integers(-1, 2**33),
    st.lists(st.binary(max_size=33), max_size=40),
    st.binary(max_size=33),
)
def test_whatever_is_given_is_a_verdict(leaf: bytes, index: int, count: int, proof: list[bytes], root: bytes) -> None:
    lonely = (index, count, proof) == (0, 1, []) and leaf == root and len(leaf) == merkle.HASH_SIZE
    assert merkle.verify(leaf, index, count, proof, root) is lonely


def test_a_signed_update_is_its_digest_and_its_signature() -> None:
    """The digest is what recovery uses; recovered here from the data of the leaf alone."""
    key = Account.from_key("0x" + "01" * 32)
    domain = Domain(chain_id=1337, contract="0x" + "11" * 20)
    update = Update(
        hospital=key.address, job="a" * 64, round=1, base="b" * 64, digest="c" * 64, samples=10, metrics="d" * 64
    )
    signature = signing.sign(update, domain, key)
    data = merkle.update_data(update, domain, signature)
    assert data[32:].hex() == signature.removeprefix("0x")
    assert Account._recover_hash(data[:32], signature=data[32:]) == key.address
    with pytest.raises(ValueError, match="hexadecimal"):
        merkle.update_data(update, domain, "0xzz")
