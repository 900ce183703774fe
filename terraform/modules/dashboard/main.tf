# What an account tells without being paid for: capacity in use (which is what quotas count), what the dead-man saw and
# ended, what lies in the bucket. Money by owner, lease or flow run is Cost Explorer's to tell, by the same tags.
locals {
  name    = "mlinfra-prefect-${var.environment}"
  classes = { G = "G/OnDemand", P = "P/OnDemand", "G spot" = "G/Spot", "P spot" = "P/Spot", CPU = "Standard/OnDemand" }

  capacity = concat([for region in var.regions : [for label, class in local.classes : [
    "AWS/Usage", "ResourceCount", "Type", "Resource", "Resource", "vCPU", "Service", "EC2", "Class", class,
    { region = region, label = length(var.regions) > 1 ? "${label} ${region}" : label },
  ]]]...)

  widgets = concat(
    [{
      type = "metric", width = 12, height = 6
      properties = {
        title   = "vCPUs in use, by the classes of the quotas (the whole account)"
        region  = var.region, view = "timeSeries", stat = "Maximum", period = 300
        metrics = local.capacity
      }
    }],
    var.log_group == "" ? [] : [{
      type = "log", width = 12, height = 6
      properties = {
        title  = "Leased machines and fleets the dead-man sees, and those it ended"
        region = var.region, view = "timeSeries"
        query  = "SOURCE '${var.log_group}' | fields @timestamp | filter event = 'done' | stats max(seen) as seen, sum(ended) as ended, sum(problems) as problems by bin(1h)"
      }
    }],
    var.function_name == "" ? [] : [{
      type = "metric", width = 12, height = 6
      properties = {
        title  = "Dead-man: calls and errors"
        region = var.region, view = "timeSeries", stat = "Sum", period = 300
        metrics = [for metric in ["Invocations", "Errors", "Throttles"] :
          ["AWS/Lambda", metric, "FunctionName", var.function_name]
        ]
      }
    }],
    [{
      type = "metric", width = 12, height = 6
      properties = {
        title  = "Artifact bucket: bytes and objects"
        region = var.region, view = "timeSeries", stat = "Average", period = 86400
        metrics = [
          ["AWS/S3", "BucketSizeBytes", "BucketName", var.artifact_bucket, "StorageType", "StandardStorage", {}],
          ["AWS/S3", "NumberOfObjects", "BucketName", var.artifact_bucket, "StorageType", "AllStorageTypes", { yAxis = "right" }],
        ]
      }
    }],
    var.request_metrics ? [{
      type = "metric", width = 12, height = 6
      properties = {
        title  = "Mailboxes: requests and errors"
        region = var.region, view = "timeSeries", stat = "Sum", period = 300
        metrics = [for metric in ["GetRequests", "PutRequests", "ListRequests", "DeleteRequests", "4xxErrors", "5xxErrors"] :
          ["AWS/S3", metric, "BucketName", var.artifact_bucket, "FilterId", "mailboxes"]
        ]
      }
    }] : [],
  )
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = local.name
  dashboard_body = jsonencode({ widgets = local.widgets })
}

resource "aws_s3_bucket_metric" "mailboxes" {
  count  = var.request_metrics ? 1 : 0
  bucket = var.artifact_bucket
  name   = "mailboxes"
  filter {
    prefix = "nodes/"
  }
}
