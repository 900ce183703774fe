# What is shown, and that it costs nothing unless asked for.
mock_provider "aws" {}

variables {
  environment     = "dev"
  region          = "eu-central-1"
  regions         = ["eu-central-1", "eu-west-1"]
  artifact_bucket = "artifacts-1"
  function_name   = "dead-man"
  log_group       = "log-1"
}

run "shows_capacity_of_every_region" {
  command = plan
  assert {
    condition     = toset([for metric in jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets[0].properties.metrics : metric[10].region]) == toset(["eu-central-1", "eu-west-1"])
    error_message = "Each region has its line."
  }
  assert {
    condition     = alltrue([for metric in jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets[0].properties.metrics : slice(metric, 0, 2) == ["AWS/Usage", "ResourceCount"]])
    error_message = "What quotas count is shown, which AWS has for nothing."
  }
}

run "shows_the_dead_man_where_there_is_one" {
  command = plan
  assert {
    condition     = length([for widget in jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets : widget if widget.type == "log"]) == 1
    error_message = "What it saw and ended comes from its log."
  }
}

run "leaves_out_what_is_not_there" {
  command = plan
  variables {
    function_name = ""
    log_group     = ""
  }
  assert {
    condition     = length(jsondecode(aws_cloudwatch_dashboard.this.dashboard_body).widgets) == 2 && length(aws_s3_bucket_metric.mailboxes) == 0
    error_message = "Without a dead-man there is capacity and the bucket; requests are counted only on request."
  }
}

run "counts_requests_when_asked" {
  command = plan
  variables {
    request_metrics = true
  }
  assert {
    condition     = one(aws_s3_bucket_metric.mailboxes[0].filter).prefix == "nodes/" && strcontains(aws_cloudwatch_dashboard.this.dashboard_body, "PutRequests")
    error_message = "Requests on mailboxes are counted and shown."
  }
}

run "refuses_no_region" {
  command = plan
  variables {
    regions = []
  }
  expect_failures = [var.regions]
}
