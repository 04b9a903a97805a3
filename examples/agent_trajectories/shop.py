"""The tools of a small shop. `setup` gets the `environment` of the row; every chat begins with its own."""

ORDERS = {}


def setup(environment):
    ORDERS.update(environment["orders"])


def find_orders(email):
    found = [name for name, order in ORDERS.items() if order["email"] == email]
    if not found:
        raise LookupError(f"no orders of {email}")
    return {"orders": found}


def get_order(order_id):
    return {"order_id": order_id, **_order(order_id)}


def cancel_order(order_id, reason):
    order = _order(order_id)
    if order["status"] != "open":
        raise ValueError(f"{order_id} is {order['status']} and cannot be cancelled")
    order.update(status="cancelled", reason=reason)
    return {"order_id": order_id, "status": "cancelled"}


def _order(order_id):
    if order_id not in ORDERS:
        raise LookupError(f"there is no order {order_id}")
    return ORDERS[order_id]
