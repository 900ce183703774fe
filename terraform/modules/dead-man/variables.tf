variable "environment" {
  description = "The environment whose machines the function ends."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,38}$", var.environment))
    error_message = "environment must have 1 to 39 lower-case letters, digits and dashes: it is part of a role's name."
  }
}

variable "tags" {
  description = "Tags of everything. What an environment shares carries mlinfra-prefect:environment and mlinfra-prefect:shared, and is never swept."
  type        = map(string)
  nullable    = false
  default     = {}
}

variable "archive" {
  description = "Path of the function's zip; mlinfra_prefect.aws.deadman.build_archive writes it."
  type        = string
  nullable    = false
}

variable "sha256" {
  description = "SHA-256 of the archive in base64: by it the function is renewed when the archive changes."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[A-Za-z0-9+/]{43}=$", var.sha256))
    error_message = "sha256 must be a SHA-256 in base64 (44 characters)."
  }
}

variable "handler" {
  description = "What is called in the archive."
  type        = string
  nullable    = false
  default     = "mlinfra_prefect.aws.deadman.handler"
}

variable "policy_arn" {
  description = "The policy by which it looks and ends (ending_policy_arn of module roles)."
  type        = string
  nullable    = false
  validation {
    condition     = startswith(var.policy_arn, "arn:")
    error_message = "policy_arn must be an ARN."
  }
}

variable "regions" {
  description = "Where it looks: every region of the environment."
  type        = list(string)
  nullable    = false
  validation {
    condition     = length(var.regions) >= 1 && alltrue([for region in var.regions : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]+$", region))])
    error_message = "regions must name at least one region such as eu-central-1."
  }
}

variable "every_minutes" {
  description = "Minutes between two looks."
  type        = number
  nullable    = false
  default     = 5
  validation {
    condition     = var.every_minutes >= 2 && floor(var.every_minutes) == var.every_minutes
    error_message = "every_minutes must be a whole number, at least 2."
  }
}

variable "grace_seconds" {
  description = "Seconds past a deadline before it ends something: keeper, reaper and the machine's own timer come first."
  type        = number
  nullable    = false
  default     = 300
  validation {
    condition     = var.grace_seconds >= 0
    error_message = "grace_seconds must not be negative."
  }
}

variable "log_days" {
  description = "Days for which the log is kept; CloudWatch takes only some numbers."
  type        = number
  nullable    = false
  default     = 14
  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365], var.log_days)
    error_message = "log_days must be one of 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365."
  }
}
