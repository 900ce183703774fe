"""What the users and extenders of this package test with: public, and as stable as the rest. Needs pytest installed."""
