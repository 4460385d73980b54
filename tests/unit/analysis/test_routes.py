"""Route shares and their picture."""

import numpy as np

from ds_moe_mtl.analysis.routes import Routes, draw_routes
from tests.support.pictures import share_of_ink

COUNTS_KLE = np.array([[[8, 2], [5, 5]], [[0, 10], [9, 1]], [[3, 3], [1, 5]]])


def test_shares_sum_to_one_over_experts_and_json_holds_them():
    routes = Routes(("a", "b", "c"), COUNTS_KLE)
    np.testing.assert_allclose(routes.shares_KLE.sum(axis=2), 1)
    values = routes.to_json()
    assert values["shares"]["a"] == [[0.8, 0.2], [0.5, 0.5]]
    assert values["tokens"] == {"a": 10, "b": 10, "c": 6}


def test_layers_with_experts_are_named_where_not_all_have_them_and_mixtures_are_called_so():
    mixtures = np.array([[[7.0, 3.0]], [[3.0, 7.0]]])
    values = Routes(("a", "b"), mixtures, merged=True, layers=(2,)).to_json()
    assert values["combine"] == "merged" and values["layers"] == [2]
    assert values["shares"] == {"a": [[0.7, 0.3]], "b": [[0.3, 0.7]]}
    assert not {"combine", "layers"} & Routes(("a", "b", "c"), COUNTS_KLE).to_json().keys()


def test_the_picture_is_written_with_ink_on_it(tmp_path):
    draw_routes(Routes(("a", "b", "c"), COUNTS_KLE), tmp_path / "routes.png")
    assert share_of_ink(tmp_path / "routes.png") > 0.01
