variable "environment" {
  description = "The environment that the roles belong to; they cannot touch what carries another one's tag."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,39}$", var.environment))
    error_message = "environment must have 1 to 40 lower-case letters, digits and dashes: it is part of a role's name."
  }
}

variable "tags" {
  description = "Tags of the roles. What an environment shares carries mlinfra-prefect:environment and mlinfra-prefect:shared, and is never swept."
  type        = map(string)
  nullable    = false
  default     = {}
}

variable "state_bucket" {
  description = "Name of the bucket with states and ledger. Nodes cannot reach it."
  type        = string
  nullable    = false
}

variable "artifact_bucket" {
  description = "Name of the bucket with mailboxes and checkpoints."
  type        = string
  nullable    = false
  validation {
    condition     = var.artifact_bucket != var.state_bucket
    error_message = "Artifacts and states need two buckets: nodes reach the one and must not reach the other."
  }
}

variable "input_buckets" {
  description = "Names of buckets from which requests may take inputs. Whoever asks for a lease signs links to single objects of them; nodes have no right to the buckets."
  type        = list(string)
  nullable    = false
  default     = []
}

variable "secret_arns" {
  description = "ARNs of secrets and parameters that every node of the environment may read; any training code of it can, then. ?????? stands for the six characters that Secrets Manager puts after a name."
  type        = list(string)
  nullable    = false
  default     = []
  validation {
    condition     = alltrue([for arn in var.secret_arns : can(regex("^arn:[a-z-]+:(secretsmanager|ssm):[a-z0-9-]+:[0-9]{12}:(secret:[a-zA-Z0-9/_+=.@-]+(-[?]{6})?|parameter/[a-zA-Z0-9/_.-]+)$", arn))])
    error_message = "secret_arns must be ARNs of secrets or parameters, without wildcards; ?????? may stand for the six characters after a secret's name."
  }
}

variable "encrypted" {
  description = "Whether buckets and disks of the environment are encrypted with keys that carry its tag, so that the roles need them."
  type        = bool
  nullable    = false
  default     = false
}

variable "trusted_arns" {
  description = "Who may take the roles of creator and reaper; empty: whom the account's own policies let."
  type        = list(string)
  nullable    = false
  default     = []
  validation {
    condition     = alltrue([for arn in var.trusted_arns : startswith(arn, "arn:") && !strcontains(arn, "*")])
    error_message = "trusted_arns must be ARNs of roles or users, without wildcards."
  }
}
