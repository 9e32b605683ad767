"""The page: routes, view models, templates."""
