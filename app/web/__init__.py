"""The web layer that all routers share: dependencies, problem responses, middleware, pagination, parameter types."""
