# It is called often enough, may look and end, and says what it did.
mock_provider "aws" {
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mock" }
  }
  mock_resource "aws_lambda_function" {
    defaults = { arn = "arn:aws:lambda:eu-central-1:123456789012:function:mock" }
  }
  mock_resource "aws_cloudwatch_event_rule" {
    defaults = { arn = "arn:aws:events:eu-central-1:123456789012:rule/mock" }
  }
}

variables {
  environment = "dev"
  archive     = "versions.tf" # any file
  sha256      = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
  policy_arn  = "arn:aws:iam::123456789012:policy/mlinfra-prefect-ending-dev"
  regions     = ["eu-central-1", "eu-west-1"]
}

run "is_called_every_five_minutes" {
  command = apply
  assert {
    condition     = aws_cloudwatch_event_rule.this.schedule_expression == "rate(5 minutes)"
    error_message = "Five minutes is what the promise counts with."
  }
  assert {
    condition     = aws_lambda_permission.this.source_arn == aws_cloudwatch_event_rule.this.arn
    error_message = "Only its own schedule may call it."
  }
}

run "is_told_where_to_look" {
  command = plan
  assert {
    condition     = one(aws_lambda_function.this.environment).variables == tomap({ ENVIRONMENT = "dev", REGIONS = "eu-central-1,eu-west-1", GRACE_SECONDS = "300" })
    error_message = "Environment, regions and grace are its settings."
  }
  assert {
    condition     = aws_lambda_function.this.timeout < 2 * 60
    error_message = "Two of them would look at once."
  }
}

run "has_the_ending_policy_and_its_log_only" {
  command = apply
  assert {
    condition     = aws_iam_role_policy_attachment.ending.policy_arn == var.policy_arn
    error_message = "It looks and ends by the roles' policy."
  }
  assert {
    condition     = jsondecode(aws_iam_role_policy.log.policy).Statement[0].Resource == "${aws_cloudwatch_log_group.this.arn}:log-stream:*"
    error_message = "It writes to its own log only."
  }
  assert {
    condition     = aws_cloudwatch_log_group.this.retention_in_days == 14
    error_message = "Logs that are kept for ever are billed for ever."
  }
}

run "refuses_what_is_no_checksum" {
  command = plan
  variables {
    sha256 = "abc"
  }
  expect_failures = [var.sha256]
}

run "refuses_no_region" {
  command = plan
  variables {
    regions = []
  }
  expect_failures = [var.regions]
}

run "refuses_calls_that_overlap" {
  command = plan
  variables {
    every_minutes = 1
  }
  expect_failures = [var.every_minutes]
}
