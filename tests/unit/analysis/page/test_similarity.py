"""How alike tasks are, and what goes along with it: closed forms."""

import numpy as np
import pytest

from ds_moe_mtl.analysis.page.similarity import (
    associations,
    features_of,
    gate_similarity,
    read_features,
    route_similarity,
)
from ds_moe_mtl.config import UserError


def test_distances_by_routes_are_zero_for_one_route_and_one_without_a_shared_expert():
    shares_KLE = np.array([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    found = route_similarity(("a", "b", "c"), shares_KLE)
    np.testing.assert_allclose(found.distances_KK, [[0, 0, 1], [0, 0, 1], [1, 1, 0]], atol=1e-12)
    assert set(found.order[:2]) == {0, 1} or set(found.order[1:]) == {0, 1}
    assert found.merges[:, 2].tolist() == pytest.approx([0, 1])


def test_distances_by_gates_are_one_less_the_cosine():
    gates_KLX = np.array([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 3.0], [1.0, 0.0]]])
    found = gate_similarity(("a", "b"), gates_KLX)
    assert found.distances_KK[0, 1] == pytest.approx(1 - (0 + 1) / 2)
    assert gate_similarity(("a",), gates_KLX[:1]).order == (0,)


def test_a_feature_that_decides_the_route_is_found_and_one_that_is_constant_left_out():
    size = np.linspace(0.1, 0.9, 8)
    noise = np.full(8, 0.5)
    shares_KLE = np.stack([np.stack([size, 1 - size], 1), np.stack([noise, noise], 1)], 1)
    distances_KK = route_similarity([str(k) for k in range(8)], shares_KLE).distances_KK
    (found,) = associations(
        {"size": size, "same": np.ones(8)}, shares_KLE, distances_KK, layers=(3, 5)
    )
    assert (found.feature, found.layer) == ("size", 3) and abs(found.r) == pytest.approx(1)
    assert found.mantel > 0.9 and found.p < 0.01
    assert associations({"size": size[:3]}, shares_KLE[:3], distances_KK[:3, :3], (3, 5)) == []


def test_a_users_features_are_numbers_or_one_column_a_word(tmp_path):
    path = tmp_path / "features.csv"
    path.write_text("task,size,kind\nrte,3,pair\nmrpc,,pair\ncola,5,single\n")
    found = features_of(read_features(path), ["cola", "rte", "mrpc", "unknown"])
    assert list(found) == ["size", "kind: pair", "kind: single"]
    np.testing.assert_array_equal(found["size"], [5, 3, np.nan, np.nan])
    np.testing.assert_array_equal(found["kind: pair"], [0, 1, 1, np.nan])
    with pytest.raises(UserError, match="no row of the run's tasks"):
        features_of(read_features(path), ["other"])


@pytest.mark.parametrize(
    "text", ["name,size\nrte,3\n", "task\nrte\n", "task,a\nrte,1\nrte,2\n", "task,a\nrte,1,2\n", ""]
)
def test_a_file_that_is_no_table_of_features_is_refused(tmp_path, text):
    path = tmp_path / "features.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="features"):
        read_features(path)
