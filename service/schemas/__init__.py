"""The marshmallow layer: what clients send passes these schemas first, and the OpenAPI document is made from them."""
