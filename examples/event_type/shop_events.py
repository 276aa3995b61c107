from nami_amp_pipeline.contract import EventType

REFUND = EventType("user.subscription.refunded", is_revenue=True, means="The store paid the user back.")
