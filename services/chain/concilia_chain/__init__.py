"""The only room with web3: deploys the ledger, relays what was signed, follows and tells what the chain says."""
