variable "mlinfra" {
  description = "Whose attempt this is; the same object goes to every root module (docs/terraform-contract.md)."
  type = object({
    ledger_id   = string
    lease_id    = string
    attempt     = number
    deadline    = string # epoch seconds; empty: none
    environment = string
    tags        = map(string)
  })
  nullable = false
  validation {
    condition     = alltrue([for id in [var.mlinfra.ledger_id, var.mlinfra.lease_id] : can(regex("^[a-z0-9][a-z0-9-]{0,62}$", id))])
    error_message = "ledger_id and lease_id must match ^[a-z0-9][a-z0-9-]{0,62}$."
  }
  validation {
    condition     = var.mlinfra.attempt >= 1 && floor(var.mlinfra.attempt) == var.mlinfra.attempt
    error_message = "attempt must be a whole number, counted from 1."
  }
  validation {
    condition     = var.mlinfra.deadline == "" || can(tonumber(var.mlinfra.deadline))
    error_message = "deadline must be epoch seconds, or empty."
  }
}

variable "agent" {
  description = "How to start the agent and how to take its right to live away; absolute paths on this machine."
  type = object({
    python   = string # interpreter, Python >= 3.11
    archive  = string # the agent, one standard-library archive
    spec     = string # what it is told
    grant    = string # it lives while this file is there
    node_dir = string # where it works and reports
  })
  nullable = false
  validation {
    condition     = alltrue([for path in values(var.agent) : startswith(path, "/")])
    error_message = "Every path of agent must be absolute."
  }
}
