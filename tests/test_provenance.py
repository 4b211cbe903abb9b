import json

from sabr.provenance import child_seed, provenance


def test_it_says_who_made_a_result():
    found = provenance(threads=2, device="cpu")
    assert json.loads(json.dumps(found)) == found
    assert {"python", "torch", "sabr", "auto-LiRPA"} <= found["versions"].keys()
    assert found["machine"]["threads"] == 2
    assert found["machine"]["cores"] >= 1


def test_purposes_do_not_share_a_seed():
    seeds = {child_seed(seed, purpose) for seed in range(50) for purpose in ("weights", "order", "attack")}
    assert len(seeds) == 150
    assert child_seed(1, "weights") == child_seed(1, "weights")
