terraform {
  required_version = ">= 1.10"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }
  }
}

# Endpoint and credentials come from the environment. Tags stand on each resource, where plans and people see them.
provider "aws" {
  region = var.region
}
