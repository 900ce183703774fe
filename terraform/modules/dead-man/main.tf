# A function that runs every few minutes and ends machines past the deadline on their tags, for the day on which keeper,
# reaper and ledger are all gone. At rest it stays within the free tier: 8,640 runs of some seconds a month.
locals {
  name = "mlinfra-prefect-dead-man-${var.environment}"
}

#trivy:ignore:AVD-AWS-0017 The log names machines and times and no secret; a customer key costs a dollar a month.
resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/lambda/${local.name}"
  retention_in_days = var.log_days
  tags              = var.tags
}

resource "aws_iam_role" "this" {
  name        = local.name
  description = "The dead-man of environment ${var.environment}."
  tags        = var.tags
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "lambda.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy_attachment" "ending" {
  role       = aws_iam_role.this.name
  policy_arn = var.policy_arn
}

# The log group is made above, with a retention; the function may only write to it.
resource "aws_iam_role_policy" "log" {
  name = "own-log"
  role = aws_iam_role.this.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid      = "WriteItsLog"
      Effect   = "Allow"
      Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource = "${aws_cloudwatch_log_group.this.arn}:log-stream:*"
    }]
  })
}

#trivy:ignore:AVD-AWS-0066 One call in, a handful out, and a line of log for each: a trace would add cost and no knowledge.
resource "aws_lambda_function" "this" {
  function_name    = local.name
  description      = "Ends machines of environment ${var.environment} that are past their deadline."
  role             = aws_iam_role.this.arn
  runtime          = "python3.13"
  architectures    = ["arm64"] # a fifth cheaper
  handler          = var.handler
  filename         = var.archive
  source_code_hash = var.sha256
  memory_size      = 256
  timeout          = 110 # below two minutes, the shortest interval: no two look at once
  tags             = var.tags

  environment {
    variables = {
      ENVIRONMENT   = var.environment
      REGIONS       = join(",", var.regions)
      GRACE_SECONDS = tostring(var.grace_seconds)
    }
  }
  logging_config {
    log_format = "Text" # it writes JSON lines itself
    log_group  = aws_cloudwatch_log_group.this.name
  }
  depends_on = [aws_iam_role_policy.log, aws_iam_role_policy_attachment.ending]
}

resource "aws_cloudwatch_event_rule" "this" {
  name                = local.name
  description         = "Calls the dead-man of environment ${var.environment}."
  schedule_expression = "rate(${var.every_minutes} minutes)"
  tags                = var.tags
}

# The next call comes soon enough: one that failed is not repeated, and none is kept for later.
resource "aws_cloudwatch_event_target" "this" {
  rule = aws_cloudwatch_event_rule.this.name
  arn  = aws_lambda_function.this.arn
  retry_policy {
    maximum_event_age_in_seconds = 60
    maximum_retry_attempts       = 0
  }
}

resource "aws_lambda_permission" "this" {
  statement_id  = "Schedule"
  action        = "lambda:InvokeFunction"
  function_name = aws_lambda_function.this.function_name
  principal     = "events.amazonaws.com"
  source_arn    = aws_cloudwatch_event_rule.this.arn
}
