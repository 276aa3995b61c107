from shop_events import REFUND

from nami_amp_pipeline.testing import EventTypeSuite


class TestRefund(EventTypeSuite):
    declared = REFUND
    example = {"amount": -9.99, "sku": "gold", "reason": "asked"}
    sends = {"price": -9.99, "productId": "gold", "event_properties": {"reason": "asked"}}
