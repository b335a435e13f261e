"""Plain data that all other folders use; imports none of them."""
