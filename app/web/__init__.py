"""What every router shares: dependencies, problem answers, middleware, pages and the types of parameters."""
