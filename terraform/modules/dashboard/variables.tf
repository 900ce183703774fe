variable "environment" {
  description = "The environment that is shown."
  type        = string
  nullable    = false
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,62}$", var.environment))
    error_message = "environment must have 1 to 63 lower-case letters, digits and dashes."
  }
}

variable "region" {
  description = "The home region: of the artifact bucket and the dead-man."
  type        = string
  nullable    = false
}

variable "regions" {
  description = "Regions whose capacity in use is shown."
  type        = list(string)
  nullable    = false
  validation {
    condition     = length(var.regions) >= 1
    error_message = "regions must name at least one region."
  }
}

variable "artifact_bucket" {
  description = "Name of the artifact bucket."
  type        = string
  nullable    = false
}

variable "function_name" {
  description = "Name of the dead-man's function; empty: there is none."
  type        = string
  nullable    = false
  default     = ""
}

variable "log_group" {
  description = "Name of the dead-man's log; empty: there is none."
  type        = string
  nullable    = false
  default     = ""
}

variable "request_metrics" {
  description = "Whether S3 counts requests on mailboxes: about five dollars a month. Without it the widget of requests is left out."
  type        = bool
  nullable    = false
  default     = false
}
