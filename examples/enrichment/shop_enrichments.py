from nami_amp_pipeline.contract import Enrichment


def lifetime_value(events, warehouse):
    query = "SELECT user_id, ltv FROM user_ltv WHERE user_id IN $users"
    known = warehouse.query(query, users=events["user_id"]).to_pandas().set_index("user_id")
    return {"shop_lifetime_value": events["user_id"].map(known["ltv"])}


LIFETIME_VALUE = Enrichment(
    properties={"shop_lifetime_value": "number"},
    function=lifetime_value,
    means="what the user has paid, less refunds",
    batch="pandas",
)
