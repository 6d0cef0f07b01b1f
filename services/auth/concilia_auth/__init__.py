"""Who you are and what you may do: Sign-In with Ethereum, sessions, access tokens, roles from the contract."""
