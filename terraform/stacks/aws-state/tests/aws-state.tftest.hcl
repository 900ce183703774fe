# The bucket carries the two tags of what is shared: no sweep takes it.
mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  environment = "dev"
  region      = "eu-central-1"
  bucket      = "mlinfra-prefect-state-dev-123456789012-eu-central-1"
}

run "is_made_for_its_environment" {
  command = apply
  assert {
    condition     = output.bucket != ""
    error_message = "The bucket has a name."
  }
}

run "refuses_an_environment_that_is_no_name" {
  command = plan
  variables {
    environment = "Dev Two"
  }
  expect_failures = [var.environment]
}
