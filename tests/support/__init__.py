"""What several tests share: small worlds to test in, stand-ins for engines and clusters, and how to wait."""
