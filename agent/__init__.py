"""The agent: runs tasks with tools, routes each step to a profile and an engine, records everything."""

from .agent import Agent
from .journal import Journal
from .limits import Budget, Limits, Spent
from .policy import Halt, Outcome, Policy, RoutingPolicy, Situation, default_policy
from .steps import Event, Result, Route, Step, Stop

__all__ = [
    "Agent",
    "Budget",
    "Event",
    "Halt",
    "Journal",
    "Limits",
    "Outcome",
    "Policy",
    "Result",
    "Route",
    "RoutingPolicy",
    "Situation",
    "Spent",
    "Step",
    "Stop",
    "default_policy",
]
