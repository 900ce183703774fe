variable "environment" {
  description = "The environment, such as dev, staging or prod. Each has states, roles and buckets of its own."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,38}$", var.environment))
    error_message = "environment must have 1 to 39 lower-case letters, digits and dashes: it is part of a role's name."
  }
}

variable "region" {
  description = "The home region of the environment: of its buckets and its dead-man."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", var.region))
    error_message = "region must look like eu-central-1."
  }
}


variable "regions" {
  description = "All regions of the environment, for the dead-man and the dashboard; empty: the home region."
  type        = list(string)
  nullable    = false
  default     = []
  validation {
    condition     = length(var.regions) == 0 || contains(var.regions, var.region)
    error_message = "regions must contain the home region."
  }
}

variable "profile" {
  description = "default: next to nothing at rest. hardened: private subnets, interface endpoints and a key of its own."
  type        = string
  nullable    = false
  default     = "default"
  validation {
    condition     = contains(["default", "hardened"], var.profile)
    error_message = "profile must be default or hardened."
  }
}

variable "egress" {
  description = "What nodes reach: internet, mirror or none."
  type        = string
  nullable    = false
  default     = "internet"
  validation {
    condition     = contains(["internet", "mirror", "none"], var.egress)
    error_message = "egress must be internet, mirror or none."
  }
  validation {
    condition     = !(var.profile == "hardened" && var.egress == "internet")
    error_message = "Profile hardened has no way to the internet: egress must be mirror or none."
  }
}

variable "zones" {
  description = "Availability zones, one subnet in each; add new ones at the end."
  type        = list(string)
  nullable    = false
}

variable "cidr" {
  description = "Addresses of the network."
  type        = string
  nullable    = false
  default     = "10.64.0.0/16"
}

variable "mirrors" {
  description = "Ranges in which package mirrors answer on port 443; with egress mirror only."
  type        = list(string)
  nullable    = false
  default     = []
}

variable "services" {
  description = "AWS services with an interface endpoint; null: those from which secrets come with profile hardened, and with default where secrets are named and egress is not internet. A node needs none for itself: its credentials come from the instance, its mailbox is S3."
  type        = set(string)
  default     = null
}

variable "state_bucket" {
  description = "Name of the bucket for states and ledger, made by stack aws-state."
  type        = string
  nullable    = false
}

variable "artifact_bucket" {
  description = "Name of the bucket for mailboxes and checkpoints, made here."
  type        = string
  nullable    = false
}

variable "input_buckets" {
  description = "Names of buckets from which requests may take inputs."
  type        = list(string)
  nullable    = false
  default     = []
}

variable "secret_arns" {
  description = "ARNs of secrets and parameters that every node of the environment may read."
  type        = list(string)
  nullable    = false
  default     = []
}

variable "trusted_arns" {
  description = "Who may take the roles of creator and reaper; empty: whom the account's own policies let."
  type        = list(string)
  nullable    = false
  default     = []
}

variable "dead_man" {
  description = "The dead-man's zip and its SHA-256 in base64; null: there is none."
  type        = object({ archive = string, sha256 = string })
  default     = null
}

variable "dashboard" {
  description = "Whether there is a dashboard. An account has three without charge; a further one costs three dollars a month."
  type        = bool
  nullable    = false
  default     = false
}

variable "emulated" {
  description = "Whether AWS is an emulator on this host: plain HTTP is let in, and no rule of expiry is made."
  type        = bool
  nullable    = false
  default     = false
}
